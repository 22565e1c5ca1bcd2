"""Accuracy of the models on other pictures and in other precisions."""
