"""Refuses RSA public keys whose private key others could compute, or that TLS stacks refuse.

Only arithmetic on the two numbers of a key, cheapest first. It loads no keys and knows no CSR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

from cryptography.hazmat.primitives.asymmetric import padding, rsa

from citadel_py.core.errors import InvalidCSR

MIN_BITS = 2048
MAX_BITS = 4096
EXPONENT = 65537
LARGEST_SMALL_FACTOR = 65537  # SP 800-89 5.3.3 asks for 752; keys of broken generators have larger ones
FERMAT_ROUNDS = 100  # the baseline, 6.1.1.3

# OpenSSL takes a public exponent of more than 64 bits only for moduli up to this size.
_LIBRARY_POWER_BITS = 3072


def check_numbers(n: int, e: int) -> None:
    """The bounds on modulus and exponent; costs nothing, and comes before all other arithmetic.

    Raises InvalidCSR: `rsa_too_small`, `rsa_too_large`, `rsa_exponent`.
    """
    bits = n.bit_length()
    if n <= 0 or bits < MIN_BITS:
        raise InvalidCSR(f"an RSA key of {bits} bits, at least {MIN_BITS} are needed", rule="rsa_too_small")
    if bits > MAX_BITS:
        raise InvalidCSR(f"an RSA key of {bits} bits, at most {MAX_BITS} are allowed", rule="rsa_too_large")
    if e != EXPONENT:
        raise InvalidCSR(f"an RSA key whose public exponent is not {EXPONENT}", rule="rsa_exponent")


def check_modulus(n: int, e: int) -> None:
    """All that can be checked in about a third of a millisecond: bounds, small factors, close factors.

    Raises InvalidCSR: those of `check_numbers`, `rsa_modulus_even`, `rsa_small_factor`, `rsa_close_factors`.
    """
    check_numbers(n, e)
    if n % 2 == 0:
        raise InvalidCSR("an RSA key with an even modulus", rule="rsa_modulus_even")
    if (factor := math.gcd(n, _product_of_small_primes())) != 1:
        shown = factor if factor <= LARGEST_SMALL_FACTOR else "several small primes"
        raise InvalidCSR(f"an RSA key whose modulus is divisible by {shown}", rule="rsa_small_factor")
    if _has_close_factors(n):
        raise InvalidCSR("an RSA key whose two primes are so close that anyone can find them", rule="rsa_close_factors")


def check_not_prime(n: int) -> None:
    """Raise InvalidCSR (`rsa_modulus_prime`) when the modulus is a prime: then the private exponent is
    the inverse of the public one modulo n - 1, which everybody can compute.

    `n` has passed `check_modulus`. There is no proof that a number is composite that is cheaper than one
    power with an exponent of its size. That costs 1.8 ms for 2048 bits, 6 ms for 3072 and 125 ms for
    4096, on the thread that asks: make it the last check.
    """
    if _is_prime(n):
        raise InvalidCSR("an RSA key whose modulus is a prime number", rule="rsa_modulus_prime")


@cache
def _product_of_small_primes() -> int:
    """The product of all odd primes up to LARGEST_SMALL_FACTOR: one gcd with it tries them all."""
    is_prime = bytearray([1]) * (LARGEST_SMALL_FACTOR + 1)
    for number in range(3, math.isqrt(LARGEST_SMALL_FACTOR) + 1, 2):
        if is_prime[number]:
            is_prime[number * number :: number] = bytes(len(is_prime[number * number :: number]))
    return math.prod(number for number in range(3, LARGEST_SMALL_FACTOR + 1, 2) if is_prime[number])


def _has_close_factors(n: int) -> bool:
    """Fermat's method: n = a^2 - b^2 with `a` barely above the root of n, for the first rounds only.

    Whether a^2 - n can be a square shows modulo small numbers, of whose remainders few are those of
    squares. That leaves less than one root to be taken, of the whole number.
    """
    a = math.isqrt(n - 1) + 1
    rounds: Sequence[int] = range(FERMAT_ROUNDS)
    for modulus, squares in _squares().items():
        first, rest = a % modulus, n % modulus
        rounds = [each for each in rounds if ((first + each) ** 2 - rest) % modulus in squares]
    return any(_is_square((a + each) ** 2 - n) for each in rounds)


@cache
def _squares() -> dict[int, frozenset[int]]:
    """The remainders that squares leave: of 4 % of all numbers modulo the first, of 8 % modulo the second."""
    moduli = (16 * 9 * 5 * 7, 11 * 13 * 17 * 19)
    return {modulus: frozenset(root * root % modulus for root in range(modulus)) for modulus in moduli}


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


@lru_cache(maxsize=1024)  # clients that repeat a request do so with the same key
def _is_prime(n: int) -> bool:
    """Fermat's test or Euler's, to one base: every prime passes, an honest product of two primes never does."""
    if n.bit_length() <= _LIBRARY_POWER_BITS:
        return _is_prime_by_encryption(n)
    return pow(2, n - 1, n) == 1


def _is_prime_by_encryption(n: int) -> bool:
    """Euler's test six times faster, with OpenSSL's power in place of Python's.

    The library has no bare power modulo n, but to encrypt by PKCS #1 v1.5 is one: of a base that is the
    text with random bytes before it (RFC 8017 7.2.1), with the public exponent, which must be odd. By
    Euler's criterion the ((n - 1) / 2)th power of every base modulo a prime is 1 or -1; where that
    exponent is even, one more gives the base again, or what it lacks to n.
    """
    text = b"Euler"
    half = (n - 1) // 2
    exponent = half if half % 2 else half + 1
    encrypted = rsa.RSAPublicNumbers(exponent, n).public_key().encrypt(text, padding.PKCS1v15())
    power = int.from_bytes(encrypted)
    if exponent == half:
        return power in (1, n - 1)
    size = len(encrypted)
    padded = (power.to_bytes(size), (n - power).to_bytes(size))
    return any(each.startswith(b"\x00\x02") and each.endswith(b"\x00" + text) for each in padded)
