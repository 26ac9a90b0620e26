"""Episodes: playing them, their files, their latents, and the batches made of them."""
