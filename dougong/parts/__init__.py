"""Parts: what models are made of. Each part is a frozen spec that knows its cost and builds its module."""
