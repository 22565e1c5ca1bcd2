"""A look inside a model: layers, saliency, strongest patches, examples, and pictures of them."""
