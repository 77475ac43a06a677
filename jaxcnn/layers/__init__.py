"""Building blocks of models: convolutions, pooling, norms, dropout, initialisers."""
