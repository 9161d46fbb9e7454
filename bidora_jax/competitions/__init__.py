"""From train.csv to submission.csv. What the files say needs no JAX: files, columns, target, texts, plan, submission."""
