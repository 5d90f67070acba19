"""What a trained network says of a split: views of its images, predictions, metrics, and figures."""
