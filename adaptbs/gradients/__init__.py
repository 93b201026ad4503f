"""From autograd to `SquaredNorms`: one file a source."""
