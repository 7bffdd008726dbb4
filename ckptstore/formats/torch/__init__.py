"""Files of torch.save, read without running any of their code (docs/adr/0017, docs/adr/0025)."""
