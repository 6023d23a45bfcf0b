"""Members that lie: a shipped replica whose words are bent on their way out, one file for each family of lies."""
