"""Parts that networks are made of: attention and its back ends, rotary positions, norms, embeddings, patches."""
