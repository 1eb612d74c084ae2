"""What is exported: folders that exist whole or not at all, model cards, and the way to the Hugging Face hub."""
