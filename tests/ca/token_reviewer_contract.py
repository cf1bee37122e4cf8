"""What every TokenReviewer does, whatever is behind it: subclass `ReviewerContract` and say how to make one.

The tests of a reviewer that asks a real API server run these against it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager

import pytest

from citadel_py.ca.token_review import TokenReviewer
from citadel_py.core.errors import Unavailable

OURS, OTHER = "istio-ca", "another-audience"


class ReviewerContract(ABC):
    """The reviewer under test answers for one cluster, in which these tokens can be made."""

    @abstractmethod
    def reviewer(self) -> AbstractAsyncContextManager[TokenReviewer]:
        """A reviewer that works."""

    @abstractmethod
    def unreachable(self) -> AbstractAsyncContextManager[TokenReviewer]:
        """One whose API server does not answer."""

    @abstractmethod
    async def token(self, *, audience: str, namespace: str = "shop", account: str = "cart") -> str:
        """A good token of a service account."""

    async def test_a_good_token_is_told_with_its_account_and_audience(self) -> None:
        async with self.reviewer() as reviewer:
            review = await reviewer.review(await self.token(audience=OURS), (OURS,))
        assert review.authenticated
        assert review.username == "system:serviceaccount:shop:cart"
        assert review.audiences == (OURS,)
        assert review.error == ""

    async def test_a_token_for_another_audience_is_not_good_for_ours(self) -> None:
        async with self.reviewer() as reviewer:
            review = await reviewer.review(await self.token(audience=OTHER), (OURS,))
        assert not (review.authenticated and OURS in review.audiences)

    @pytest.mark.parametrize("token", ["a.b.c", "x" * 16_000, "e30.e30."])
    async def test_nonsense_is_an_answer_and_no_error(self, token: str) -> None:
        async with self.reviewer() as reviewer:
            review = await reviewer.review(token, (OURS,))
        assert not review.authenticated
        assert token not in review.error

    async def test_without_an_answer_it_cannot_be_told(self) -> None:
        token = await self.token(audience=OURS)
        async with self.unreachable() as reviewer:
            with pytest.raises(Unavailable) as caught:
                await reviewer.review(token, (OURS,))
        assert token not in str(caught.value)

    async def test_several_reviews_at_once_do_not_get_mixed_up(self) -> None:
        accounts = ["cart", "pay", "web"] * 5
        tokens = [await self.token(audience=OURS, account=each) for each in accounts]
        async with self.reviewer() as reviewer:
            reviews = await asyncio.gather(*(reviewer.review(token, (OURS,)) for token in tokens))
        assert [review.username.rpartition(":")[2] for review in reviews] == accounts

    async def test_a_review_can_be_given_up(self) -> None:
        token = await self.token(audience=OURS)
        async with self.reviewer() as reviewer:
            given_up = asyncio.create_task(reviewer.review(token, (OURS,)))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            assert (await reviewer.review(token, (OURS,))).authenticated
