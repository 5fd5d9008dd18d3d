"""Networks: the denoiser, the video autoencoder, the text encoder and its tokenizer."""
