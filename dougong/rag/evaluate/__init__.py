"""How good retrieval is: measures, collections with judgements, and the table over chunkers, retrievers, rerankers."""

from dougong.rag.evaluate.answers import evaluate_answers
from dougong.rag.evaluate.collections import COLLECTIONS, Collection, read_collection
from dougong.rag.evaluate.measures import exact_match, f1, ndcg, recall, reciprocal_rank_of_first
from dougong.rag.evaluate.table import Result, Row, evaluate, ranked_documents

__all__ = [
    "COLLECTIONS",
    "Collection",
    "Result",
    "Row",
    "evaluate",
    "evaluate_answers",
    "exact_match",
    "f1",
    "ndcg",
    "ranked_documents",
    "read_collection",
    "recall",
    "reciprocal_rank_of_first",
]
