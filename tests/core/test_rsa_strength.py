"""Which RSA keys are refused for their numbers: as arithmetic, and as whole requests with true signatures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given
from hypothesis import strategies as st

from citadel_py.core import rsa_strength
from citadel_py.core.csr import create_csr, parse_csr
from citadel_py.core.errors import InvalidCSR
from tests.core import hostile_csrs as make
from tests.core.hostile_csrs import RSA_SHA256, Draft, Row, refused_rule, rsa_draft, rsa_key, rsa_key_of, rsa_spki

P, Q, PRIME_3072, PRIME_4096 = make.prime_moduli()
PQ = P * Q  # 4096 bits


def modulus() -> int:
    return rsa_key().public_key().public_numbers().n


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def of_modulus(n: int, e: int = 65537) -> bytes:
    return replace(rsa_draft(), spki=rsa_spki(n, e)).der()


def of_prime_modulus(index: int) -> bytes:
    """With a true signature, which anybody can make: d is the inverse of e modulo n - 1."""
    n = make.prime_moduli()[index]
    sign = make.pkcs1_by_exponent(n, pow(65537, -1, n - 1))
    return Draft(spki=rsa_spki(n), sign=sign, algorithm=RSA_SHA256).der()


REFUSED: list[Row] = [
    ("1024 bits", "rsa_too_small", lambda: create_csr(rsa_key(1024))),
    ("2047 bits", "rsa_too_small", lambda: of_modulus(2**2047 - 1)),
    ("modulus 0", "rsa_too_small", lambda: of_modulus(0)),
    ("negative modulus", "rsa_too_small", lambda: of_modulus(-modulus())),
    ("4097 bits", "rsa_too_large", lambda: of_modulus(2**4096 + 1)),
    ("60000 bits", "rsa_too_large", lambda: of_modulus(2**60_000 - 1)),
    ("exponent 1", "rsa_exponent", lambda: of_modulus(modulus(), 1)),
    ("exponent 3", "rsa_exponent", lambda: create_csr(rsa_key(2048, 3))),
    ("exponent 65536", "rsa_exponent", lambda: of_modulus(modulus(), 65536)),
    ("exponent 65539", "rsa_exponent", lambda: of_modulus(modulus(), 65539)),
    ("exponent 0", "rsa_exponent", lambda: of_modulus(modulus(), 0)),
    ("negative exponent", "rsa_exponent", lambda: of_modulus(modulus(), -65537)),
    ("an exponent beyond the modulus", "rsa_exponent", lambda: of_modulus(modulus(), modulus() + 2)),
    ("an even modulus", "rsa_modulus_even", lambda: of_modulus(modulus() - 1)),
    ("a small factor", "rsa_small_factor", lambda: of_modulus(modulus() * 65537)),
    ("close factors", "rsa_close_factors", lambda: of_modulus(close_product())),
    ("a prime modulus of 2048 bits", "rsa_modulus_prime", lambda: of_prime_modulus(0)),
    ("a prime modulus of 3072 bits", "rsa_modulus_prime", lambda: of_prime_modulus(2)),
    ("a prime modulus of 4096 bits", "rsa_modulus_prime", lambda: of_prime_modulus(3)),
]  # fmt: skip


def close_product() -> int:
    """The square of a prime has the closest factors of all."""
    private = rsa_key().private_numbers()
    return max(private.p, private.q) ** 2


@pytest.mark.parametrize(("rule", "request_bytes"), [pytest.param(row[1], row[2], id=row[0]) for row in REFUSED])
def test_a_request_for_a_weak_key_is_refused_by_the_rule_that_it_breaks(
    rule: str, request_bytes: Callable[[], bytes]
) -> None:
    assert refused_rule(lambda: parse_csr(request_bytes())) == rule


SMALL_PRIMES = [number for number in range(3, 65538, 2) if is_prime(number)]
PRODUCT_OF_SMALL_PRIMES = math.prod(SMALL_PRIMES)


@given(st.sampled_from(SMALL_PRIMES))
@example(3)
@example(65521)
@example(65537)
def test_every_small_factor_is_found(factor: int) -> None:
    assert refused_rule(lambda: rsa_strength.check_modulus(P * factor, 65537)) == "rsa_small_factor"


def test_a_small_factor_is_named() -> None:
    with pytest.raises(InvalidCSR, match="divisible by 251"):
        rsa_strength.check_modulus(P * 251, 65537)


def found_in_round(number: int) -> tuple[int, int]:
    """A modulus without small factors, and the round of Fermat's method that finds its two: about `number`."""
    a = math.isqrt(PQ)
    start = math.isqrt(2 * a * number)
    start += (start + a + 1) % 2  # one of both is even
    b = next(b for b in range(start, start + 2**20, 2) if math.gcd(a**2 - b**2, PRODUCT_OF_SMALL_PRIMES) == 1)
    n = a**2 - b**2
    return n, a - (math.isqrt(n - 1) + 1)


@pytest.mark.parametrize("number", [0, 1, 50, 98, 99, 100, 101, 200])
def test_close_factors_are_found_in_the_first_hundred_rounds_and_no_later_one(number: int) -> None:
    n, needed = found_in_round(number)
    if needed < 100:
        assert refused_rule(lambda: rsa_strength.check_modulus(n, 65537)) == "rsa_close_factors"
    else:
        rsa_strength.check_modulus(n, 65537)


@given(st.integers(0, 2**515))
def test_factors_that_differ_in_their_lower_half_only_are_found(difference: int) -> None:
    # Fermat's method needs about (p - q)^2 / (8 sqrt(n)) rounds: it finds half of the bits, and some.
    p = rsa_key().private_numbers().p
    n = p * (p + 2 * difference)
    expected = "rsa_close_factors" if math.gcd(n, math.prod(SMALL_PRIMES)) == 1 else "rsa_small_factor"
    assert refused_rule(lambda: rsa_strength.check_modulus(n, 65537)) == expected


@pytest.mark.parametrize("key", [rsa_key(), rsa_key_of(P, Q)], ids=["2048 bits", "4096 bits"])
def test_an_honest_key_passes(key: rsa.RSAPrivateKey) -> None:
    numbers = key.public_key().public_numbers()
    rsa_strength.check_modulus(numbers.n, numbers.e)
    rsa_strength.check_not_prime(numbers.n)


@pytest.mark.parametrize("prime", [P, PRIME_3072, PRIME_4096], ids=int.bit_length)
def test_a_prime_is_seen_on_both_ways_to_take_its_power(prime: int) -> None:
    assert refused_rule(lambda: rsa_strength.check_not_prime(prime)) == "rsa_modulus_prime"


@given(st.integers(2**1023, 2**1024), st.integers(2**1023 + 2**1022, 2**1024))
def test_a_product_is_never_taken_for_a_prime(one: int, other: int) -> None:
    rsa_strength.check_not_prime((one | 1) * (other | 1))


@pytest.mark.parametrize("prime", [P, Q], ids=["1 modulo 4", "3 modulo 4"])
def test_a_prime_of_either_kind_is_seen(prime: int) -> None:
    assert refused_rule(lambda: rsa_strength.check_not_prime(prime)) == "rsa_modulus_prime"


@pytest.mark.parametrize("last", [1, 3], ids=["1 modulo 4", "3 modulo 4"])
def test_an_honest_modulus_of_either_kind_passes(last: int) -> None:
    keys = iter(lambda: rsa.generate_private_key(65537, 2048).public_key().public_numbers().n, 0)
    rsa_strength.check_not_prime(next(n for n in keys if n % 4 == last))
