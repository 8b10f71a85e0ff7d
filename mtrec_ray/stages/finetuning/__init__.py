"""What the finetune job is made of."""
