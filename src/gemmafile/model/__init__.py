"""The model: configuration, weights, and the forward pass recorded once as a tape."""
