"""What every asset shares: how a stage is declared, built once and reused."""
