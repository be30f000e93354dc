"""Bedstone: the whole life of foundation models on one Transformer core."""
