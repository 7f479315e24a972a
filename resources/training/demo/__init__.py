"""Trains the demo pack: a tiny chat model, four LoRA adapters and an X-LoRA classifier over them."""
