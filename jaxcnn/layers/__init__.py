"""What models are made of: convolutions, pooling, norms, dropout, initialisers."""
