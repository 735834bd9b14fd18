// loyalty CUSTOMER MERCHANT POINTS ISSUER AMOUNT POINTS_PER_100
//
// The customer pays the merchant, and gets points from the issuer on an account of points:
// amount * pointsPer100 / 100, rounded down.

@external("ledger", "credit")
declare function credit(account: u64, amount: u64): void;
@external("ledger", "debit")
declare function debit(account: u64, amount: u64): void;
@external("ledger", "get_balance")
declare function getBalance(account: u64): i64;

const INSUFFICIENT_FUNDS = 1;
const BAD_AMOUNT = 128;
const BAD_RATE = 129;
const BAD_ACCOUNT = 130;

// Together they keep amount * pointsPer100 inside 64 bits.
const MAX_AMOUNT: i64 = 1_000_000_000_000_000;
const MAX_POINTS_PER_100: i64 = 1_000;

/** The other side of deposits and withdrawals: an account of money. */
const SYSTEM: u64 = 0;

/** The ledger knows no currencies: a mistake in a parameter would turn points into money. */
function holdsMoney(account: u64, customer: u64, merchant: u64): bool {
  return account == SYSTEM || account == customer || account == merchant;
}

export function execute(
  customer: u64,
  merchant: u64,
  points: u64,
  issuer: u64,
  amount: i64,
  pointsPer100: i64,
  _p6: i64,
  _p7: i64,
): i32 {
  if (amount < 1 || amount > MAX_AMOUNT) return BAD_AMOUNT;
  if (pointsPer100 < 0 || pointsPer100 > MAX_POINTS_PER_100) return BAD_RATE;
  if (
    points == issuer ||
    holdsMoney(points, customer, merchant) ||
    holdsMoney(issuer, customer, merchant)
  ) {
    return BAD_ACCOUNT;
  }
  if (getBalance(customer) < amount) return INSUFFICIENT_FUNDS;

  const earned = (<u64>amount * <u64>pointsPer100) / 100;
  credit(customer, <u64>amount);
  debit(merchant, <u64>amount);
  credit(issuer, earned);
  debit(points, earned);
  return 0;
}
