"""Answers for very many pictures, as one Parquet file: `convscope score`."""
