"""What tokens are: characters, bytes, subwords, and the vocabulary of pairs."""
