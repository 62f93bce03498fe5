"""Images beside text: an open_clip tower and a projector before a causal language model."""
