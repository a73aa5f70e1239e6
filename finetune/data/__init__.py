"""Read, check, split, sample and write groups, corpora and judgements."""
