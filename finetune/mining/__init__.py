"""Mine groups from a corpus, queries and judgements or answers."""
