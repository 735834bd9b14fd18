//! `fee_transfer SENDER RECEIVER FEE_ACCOUNT AMOUNT FEE_BPS`
//!
//! The receiver gets the amount. The sender pays the amount and the fee, which goes to the fee
//! account: `amount * fee_bps / 10_000`, rounded down.

#![no_std]

const INSUFFICIENT_FUNDS: i32 = 1;
const BAD_AMOUNT: i32 = 128;
const BAD_FEE: i32 = 129;

/// One hundred percent in basis points.
const WHOLE: u64 = 10_000;
const MAX_BPS: i64 = WHOLE as i64;

#[link(wasm_import_module = "ledger")]
unsafe extern "C" {
    safe fn credit(account: u64, amount: u64);
    safe fn debit(account: u64, amount: u64);
    safe fn get_balance(account: u64) -> i64;
}

/// `amount * bps / 10_000`, rounded down, where the product need not fit into 64 bits.
/// With `bps <= 10_000` the result is at most `amount`.
fn share(amount: u64, bps: u64) -> u64 {
    amount / WHOLE * bps + amount % WHOLE * bps / WHOLE
}

#[unsafe(no_mangle)]
pub extern "C" fn execute(
    sender: u64,
    receiver: u64,
    fee_account: u64,
    amount: i64,
    fee_bps: i64,
    _: i64,
    _: i64,
    _: i64,
) -> i32 {
    if amount <= 0 {
        return BAD_AMOUNT;
    }
    if !matches!(fee_bps, 0..=MAX_BPS) {
        return BAD_FEE;
    }
    let amount = amount as u64;
    let fee = share(amount, fee_bps as u64);
    let total = amount + fee; // at most 2 * (2^63 - 1): fits
    let balance = get_balance(sender);
    if balance < 0 || (balance as u64) < total {
        return INSUFFICIENT_FUNDS;
    }
    credit(sender, total);
    debit(receiver, amount);
    debit(fee_account, fee);
    0
}

/// Ends the call: the ledger undoes it with INVALID_OPERATION. That the message is not looked at lets
/// the compiler leave it out.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
