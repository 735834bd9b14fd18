// fee_transfer SENDER RECEIVER FEE_ACCOUNT AMOUNT FEE_BPS
//
// The receiver gets the amount. The sender pays the amount and the fee, which goes to the fee
// account: amount * feeBps / 10000, rounded down.

@external("ledger", "credit")
declare function credit(account: u64, amount: u64): void;
@external("ledger", "debit")
declare function debit(account: u64, amount: u64): void;
@external("ledger", "get_balance")
declare function getBalance(account: u64): i64;

const INSUFFICIENT_FUNDS = 1;
const BAD_AMOUNT = 128;
const BAD_FEE = 129;

/** One hundred percent in basis points. */
const WHOLE: u64 = 10_000;

/**
 * amount * bps / 10000, rounded down, where the product need not fit into 64 bits.
 * With bps <= 10000 the result is at most the amount.
 */
function share(amount: u64, bps: u64): u64 {
  return (amount / WHOLE) * bps + ((amount % WHOLE) * bps) / WHOLE;
}

export function execute(
  sender: u64,
  receiver: u64,
  feeAccount: u64,
  amount: i64,
  feeBps: i64,
  _p5: i64,
  _p6: i64,
  _p7: i64,
): i32 {
  if (amount <= 0) return BAD_AMOUNT;
  if (feeBps < 0 || feeBps > <i64>WHOLE) return BAD_FEE;

  const fee = share(<u64>amount, <u64>feeBps);
  const total = <u64>amount + fee; // at most 2 * (2^63 - 1): fits
  const balance = getBalance(sender);
  if (balance < 0 || <u64>balance < total) return INSUFFICIENT_FUNDS;

  credit(sender, total);
  debit(receiver, <u64>amount);
  debit(feeAccount, fee);
  return 0;
}
