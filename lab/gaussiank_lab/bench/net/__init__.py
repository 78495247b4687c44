"""The network lab: the real training loop between processes whose links have the rate that they are given."""
