"""Graph passes: one capture in, one step graph per role out."""
