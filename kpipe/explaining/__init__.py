"""Explanations of a trained network: what its layers compute, and why it says what it says of an image.

Every function takes a Keras model from raw images [B, H, W, C], 0..255, to logits [B, K], and returns NumPy arrays.
`kpipe.commands.explain` draws them.
"""
