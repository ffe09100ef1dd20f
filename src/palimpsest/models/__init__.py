"""Models: families, loading, tokens, running a part, hooks; pre-training the mini models and examining them."""
