"""The study: is DiaBlo better than LoRA and full fine-tuning when every learning rate is tuned?"""
