"""What training does to images: one module a family."""
