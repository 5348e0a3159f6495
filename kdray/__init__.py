"""Distil a large NLP model into the best small one for a use."""
