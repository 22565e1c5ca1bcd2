"""Speed and accuracy of training."""
