"""Augmentations of training images: one module a family."""
