//! `loyalty CUSTOMER MERCHANT POINTS ISSUER AMOUNT POINTS_PER_100`
//!
//! The customer pays the merchant, and gets points from the issuer on an account of points:
//! `amount * points_per_100 / 100`, rounded down.

#![no_std]

const INSUFFICIENT_FUNDS: i32 = 1;
const BAD_AMOUNT: i32 = 128;
const BAD_RATE: i32 = 129;
const BAD_ACCOUNT: i32 = 130;

// Together they keep `amount * points_per_100` inside 64 bits.
const MAX_AMOUNT: i64 = 1_000_000_000_000_000;
const MAX_POINTS_PER_100: i64 = 1_000;

/// The other side of deposits and withdrawals: an account of money.
const SYSTEM: u64 = 0;

#[link(wasm_import_module = "ledger")]
unsafe extern "C" {
    safe fn credit(account: u64, amount: u64);
    safe fn debit(account: u64, amount: u64);
    safe fn get_balance(account: u64) -> i64;
}

#[unsafe(no_mangle)]
pub extern "C" fn execute(
    customer: u64,
    merchant: u64,
    points: u64,
    issuer: u64,
    amount: i64,
    points_per_100: i64,
    _: i64,
    _: i64,
) -> i32 {
    if !matches!(amount, 1..=MAX_AMOUNT) {
        return BAD_AMOUNT;
    }
    if !matches!(points_per_100, 0..=MAX_POINTS_PER_100) {
        return BAD_RATE;
    }
    // The ledger knows no currencies: a mistake in a parameter would turn points into money.
    let holds_money = |account| account == SYSTEM || account == customer || account == merchant;
    if points == issuer || holds_money(points) || holds_money(issuer) {
        return BAD_ACCOUNT;
    }
    if get_balance(customer) < amount {
        return INSUFFICIENT_FUNDS;
    }
    let earned = amount as u64 * points_per_100 as u64 / 100;
    credit(customer, amount as u64);
    debit(merchant, amount as u64);
    credit(issuer, earned);
    debit(points, earned);
    0
}

/// Ends the call: the ledger undoes it with INVALID_OPERATION. That the message is not looked at lets
/// the compiler leave it out.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
