"""The network: many users at once, each call one `Exchange`. Knows no tables."""
