"""Models of other programs, coming and going: the original DGS-GPT, Hugging Face, GGUF."""
