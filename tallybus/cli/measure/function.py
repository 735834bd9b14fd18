"""The function that `tallybus load --kind function` calls: a transfer with a fee.

Five parameters, a check of the balance, three entries. Its binary stands here beside the text that
it is made from (a test compares them), so that measuring needs no toolchain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallybus.common.checksum import crc32c
from tallybus.errors import AlreadyExists

if TYPE_CHECKING:
    from tallybus.client import Client

NAME: Final = "load_fee_transfer"
FEE_BPS: Final = 50
"""Hundredths of a percent of the amount. The fee is rounded up, so that there is one of each."""
FEE_ACCOUNT: Final = 1

SOURCE: Final = """\
(module
  (import "ledger" "credit" (func $credit (param i64 i64)))
  (import "ledger" "debit" (func $debit (param i64 i64)))
  (import "ledger" "get_balance" (func $get_balance (param i64) (result i64)))
  (func (export "execute")
    (param $sender i64) (param $receiver i64) (param $fee_account i64)
    (param $amount i64) (param $fee_bps i64) (param i64 i64 i64) (result i32)
    (local $fee i64)
    (local.set $fee (i64.div_u
      (i64.add (i64.mul (local.get $amount) (local.get $fee_bps)) (i64.const 9999))
      (i64.const 10000)))
    (if (i64.lt_s
          (call $get_balance (local.get $sender))
          (i64.add (local.get $amount) (local.get $fee)))
      (then (return (i32.const 1))))
    (call $credit (local.get $sender) (i64.add (local.get $amount) (local.get $fee)))
    (call $debit (local.get $receiver) (local.get $amount))
    (call $debit (local.get $fee_account) (local.get $fee))
    (i32.const 0)))
"""

BINARY: Final = bytes.fromhex(
    "0061736d0100000001170360027e7e0060017e017e60087e7e7e7e7e7e7e7e017f023503066c6564676572066372"
    "656469740000066c65646765720564656269740000066c65646765720b6765745f62616c616e6365000103020102"
    "070b01076578656375746500030a3e013c01017e200320047e428fce007c4290ce0080210820001002200320087c"
    "53044041010f0b2000200320087c100020012003100120022008100141000b005e046e616d65011d030006637265"
    "64697401056465626974020b6765745f62616c616e63650238010306000673656e64657201087265636569766572"
    "020b6665655f6163636f756e740306616d6f756e7404076665655f6270730803666565"
)


def register(client: Client) -> None:
    """Register the function, unless exactly it is there already. Raises what the client raises."""
    for info in client.list_functions():
        if info.name == NAME:
            if info.crc32c != crc32c(BINARY):
                # The one of another release: the name is this tool's own.
                client.register_function(NAME, BINARY, override=True)
            return
    try:
        client.register_function(NAME, BINARY)
    except AlreadyExists:
        return  # by another run of this tool, a moment ago
