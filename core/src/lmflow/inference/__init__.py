"""Drawing tokens: sampling, batching, streaming."""
