"""What many requests share: one language model, one flow decoder and one vocoder at work for several at a time."""
