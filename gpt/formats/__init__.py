"""A GPT in the forms that other software reads and writes: transformers, and llama.cpp's GGUF."""
