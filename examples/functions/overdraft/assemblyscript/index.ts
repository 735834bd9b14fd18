// overdraft PAYER PAYEE AMOUNT LIMIT
//
// Moves the amount. The payer's balance may fall below zero, down to -limit.

@external("ledger", "credit")
declare function credit(account: u64, amount: u64): void;
@external("ledger", "debit")
declare function debit(account: u64, amount: u64): void;
@external("ledger", "get_balance")
declare function getBalance(account: u64): i64;

const BAD_AMOUNT = 128;
const BAD_LIMIT = 129;
const OVER_LIMIT = 130;

export function execute(
  payer: u64,
  payee: u64,
  amount: i64,
  limit: i64,
  _p4: i64,
  _p5: i64,
  _p6: i64,
  _p7: i64,
): i32 {
  if (amount <= 0) return BAD_AMOUNT;
  if (limit < 0) return BAD_LIMIT;

  // What is asked is balance - amount >= -limit. The left side may overflow, and so may
  // balance + limit; amount - limit cannot, as neither of them is negative.
  if (getBalance(payer) < amount - limit) return OVER_LIMIT;

  credit(payer, <u64>amount);
  debit(payee, <u64>amount);
  return 0;
}
