"""Refuses RSA public keys whose private key others could compute, or that TLS stacks refuse.

Only arithmetic on the two numbers of a key, cheapest first. It loads no keys and knows no CSR.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from citadel_py.core.errors import InvalidCSR

MIN_BITS = 2048
MAX_BITS = 4096
EXPONENT = 65537
LARGEST_SMALL_FACTOR = 65537
FERMAT_ROUNDS = 100

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
    """All that can be checked in about half a millisecond: bounds, small factors, close factors.

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
    power with an exponent of its size. That costs 2 ms for 2048 bits, 7 ms for 3072 and 125 ms for
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
    """Fermat's method: n = a^2 - b^2 with `a` barely above the root of n, for the first rounds only."""
    a = math.isqrt(n - 1) + 1
    for _ in range(FERMAT_ROUNDS):
        square = a * a - n
        # modulo 16 a square is 0, 1, 4 or 9: three of four roots need not be taken
        if square % 16 in (0, 1, 4, 9) and math.isqrt(square) ** 2 == square:
            return True
        a += 1
    return False


@lru_cache(maxsize=1024)  # clients that repeat a request do so with the same key
def _is_prime(n: int) -> bool:
    """Fermat's test to one base: every prime passes, an honest product of two primes never does."""
    if n.bit_length() <= _LIBRARY_POWER_BITS:
        return _is_prime_by_signature(n)
    return pow(2, n - 1, n) == 1


def _is_prime_by_signature(n: int) -> bool:
    """The same test eight times faster, with OpenSSL's power in place of Python's.

    The library has no bare power modulo n, but recovering what a PKCS #1 v1.5 signature holds is one:
    it raises the signature to the public exponent and strips the padding. With the exponent n - 2 and
    the inverse of a padded text as the signature, the power is that text again if its (n - 1)th power
    is 1, and noise if not.
    """
    text = b"Fermat"
    size = (n.bit_length() + 7) // 8
    padded = b"\x00\x01" + b"\xff" * (size - len(text) - 3) + b"\x00" + text  # RFC 8017 9.2
    try:
        signature = pow(int.from_bytes(padded), -1, n)
    except ValueError:  # not invertible: they have a factor in common, so n has one
        return False
    key = rsa.RSAPublicNumbers(e=n - 2, n=n).public_key()
    try:
        return key.recover_data_from_signature(signature.to_bytes(size), padding.PKCS1v15(), None) == text
    except InvalidSignature:
        return False
