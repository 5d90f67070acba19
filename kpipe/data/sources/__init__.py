"""Sources of images: one module a kind."""
