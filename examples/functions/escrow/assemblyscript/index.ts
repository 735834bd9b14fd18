// escrow OPERATION ESCROW PARTY AMOUNT PLATFORM CUT_BPS
//
// 1 holds the payer's money in the escrow account, 2 releases it to the payee less the platform's
// cut, 3 gives it back to the payer.

@external("ledger", "credit")
declare function credit(account: u64, amount: u64): void;
@external("ledger", "debit")
declare function debit(account: u64, amount: u64): void;
@external("ledger", "get_balance")
declare function getBalance(account: u64): i64;

const INSUFFICIENT_FUNDS = 1;
const BAD_AMOUNT = 128;
const BAD_CUT = 129;
const UNKNOWN_OPERATION = 130;
const NOT_HELD = 131;
const BAD_ACCOUNT = 132;

const HOLD: i64 = 1;
const RELEASE: i64 = 2;
const REFUND: i64 = 3;

/** The other side of deposits and withdrawals: it holds nothing for anybody. */
const SYSTEM: u64 = 0;

/** One hundred percent in basis points. */
const WHOLE: u64 = 10_000;

/**
 * amount * bps / 10000, rounded down, where the product need not fit into 64 bits.
 * With bps <= 10000 the result is at most the amount.
 */
function share(amount: u64, bps: u64): u64 {
  return (amount / WHOLE) * bps + ((amount % WHOLE) * bps) / WHOLE;
}

function hold(payer: u64, escrow: u64, amount: i64): i32 {
  if (getBalance(payer) < amount) return INSUFFICIENT_FUNDS;
  credit(payer, <u64>amount);
  debit(escrow, <u64>amount);
  return 0;
}

/** Gives the amount from the escrow account, the cut to the platform and the rest to the party. */
function payOut(escrow: u64, party: u64, amount: i64, platform: u64, cut: u64): i32 {
  if (getBalance(escrow) < amount) return NOT_HELD;
  credit(escrow, <u64>amount);
  debit(party, <u64>amount - cut);
  if (cut != 0) debit(platform, cut);
  return 0;
}

export function execute(
  operation: i64,
  escrow: u64,
  party: u64,
  amount: i64,
  platform: u64,
  cutBps: i64,
  _p6: i64,
  _p7: i64,
): i32 {
  if (operation < HOLD || operation > REFUND) return UNKNOWN_OPERATION;
  if (escrow == SYSTEM || escrow == party) return BAD_ACCOUNT;
  if (amount <= 0) return BAD_AMOUNT;

  if (operation == HOLD) return hold(party, escrow, amount);
  if (operation == REFUND) return payOut(escrow, party, amount, platform, 0);

  if (escrow == platform) return BAD_ACCOUNT;
  if (cutBps < 0 || cutBps > <i64>WHOLE) return BAD_CUT;
  return payOut(escrow, party, amount, platform, share(<u64>amount, <u64>cutBps));
}
