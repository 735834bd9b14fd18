//! `overdraft PAYER PAYEE AMOUNT LIMIT`
//!
//! Moves the amount. The payer's balance may fall below zero, down to `-limit`.

#![no_std]

const BAD_AMOUNT: i32 = 128;
const BAD_LIMIT: i32 = 129;
const OVER_LIMIT: i32 = 130;

#[link(wasm_import_module = "ledger")]
unsafe extern "C" {
    safe fn credit(account: u64, amount: u64);
    safe fn debit(account: u64, amount: u64);
    safe fn get_balance(account: u64) -> i64;
}

#[unsafe(no_mangle)]
pub extern "C" fn execute(
    payer: u64,
    payee: u64,
    amount: i64,
    limit: i64,
    _: i64,
    _: i64,
    _: i64,
    _: i64,
) -> i32 {
    if amount <= 0 {
        return BAD_AMOUNT;
    }
    if limit < 0 {
        return BAD_LIMIT;
    }
    // What is asked is `balance - amount >= -limit`. The left side may overflow, and so may
    // `balance + limit`; `amount - limit` cannot, as neither of them is negative.
    if get_balance(payer) < amount - limit {
        return OVER_LIMIT;
    }
    credit(payer, amount as u64);
    debit(payee, amount as u64);
    0
}

/// Ends the call: the ledger undoes it with INVALID_OPERATION. That the message is not looked at lets
/// the compiler leave it out.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
