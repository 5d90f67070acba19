"""What a trained network says of a split: predictions, and the figures drawn from them."""
