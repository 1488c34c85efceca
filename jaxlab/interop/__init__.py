"""To and from other people's tools: Hugging Face folders, lm-evaluation-harness."""
